"""The trained model in use: predictions for new files, an HTTP server, exports to other runtimes."""

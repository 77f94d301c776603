"""Run the frozen backbone: engines and executors, and the store of the features that they computed."""

"""Headstart: five stages from labelled images to an evaluated classifier. `dvc.yaml` is the map."""

"""Training: data, tasks and runs. It needs the extra `pyrosys[train]`; nothing of it is imported to use a model."""

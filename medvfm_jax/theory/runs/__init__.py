"""From settings to a record: each tool on real models and data, one file each."""

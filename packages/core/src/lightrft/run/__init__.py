"""What a run leaves behind: its folder, metrics, plots, the report page, loggers."""

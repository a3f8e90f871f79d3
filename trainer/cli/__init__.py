"""The command line: parser, terminal output and settings files."""

"""What makes a dataset of a folder that nobody has put in order: files, names, channels, cases, labels."""

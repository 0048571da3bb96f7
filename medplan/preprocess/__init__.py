"""From a scan to what networks see, and back."""

"""From an image to a label file on its own grid."""

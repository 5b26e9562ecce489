"""Images with a mask of classes: files, layouts, splits and statistics."""

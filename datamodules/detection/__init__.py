"""Images with boxes of objects: files, layouts, parts and statistics."""

"""The images of an evaluation, with or without labels: from folders, COCO files, arrays."""

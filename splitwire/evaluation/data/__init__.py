"""What an evaluation runs on: folders, COCO files, arrays, with or without labels."""

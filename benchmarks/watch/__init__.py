"""What a watch says of trainings that are well, and what it does for faulty ones."""

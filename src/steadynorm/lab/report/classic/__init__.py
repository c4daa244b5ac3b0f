"""The report of the sigmoid network of batch norm's first figure."""

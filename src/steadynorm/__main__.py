"""``python -m steadynorm``."""

from steadynorm.cli import main

if __name__ == "__main__":
    main()

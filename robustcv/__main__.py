"""``python -m robustcv``, also under torchrun."""

from robustcv.cli import main

if __name__ == "__main__":
    main()

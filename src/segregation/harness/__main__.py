"""lm-eval's own command, with the model ``segregation`` known to it."""

from lm_eval.__main__ import cli_evaluate

import segregation.harness  # noqa: F401  (registers the model)
from segregation.errors import refusing


def main() -> None:
    """The entry point of ``segregation-lm-eval``; takes what ``lm_eval`` takes."""
    with refusing():
        cli_evaluate()


if __name__ == "__main__":
    main()

"""The model ``segregation`` of lm-eval (lm-evaluation-harness): any of its tasks, under any plan.

``segregation-lm-eval`` (or ``python -m segregation.harness``) is lm-eval's own command with this model known to it:

    segregation-lm-eval --model segregation --model_args pretrained=tiny-jamba,plan=plan.json --tasks ...

Importing this package is what registers the model.
"""

try:
    import lm_eval  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "segregation.harness needs lm-eval, which is an extra: pip install 'hybrid-segregation[eval]'"
    ) from error

from segregation.harness.model import SegregationLM

__all__ = ["SegregationLM"]

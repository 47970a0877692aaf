"""Is the Hugging Face hub there? Asked once: its own client retries for half a minute."""

from __future__ import annotations


def hub_answers(name: str, kind: str = "model") -> bool:
    """Whether the hub can be asked for a model or a dataset now.

    Args:
        name: such as ``"roneneldan/TinyStories-33M"``.
        kind: ``model`` or ``dataset``.

    True also if the hub answers that there is no such thing: who asks next will be told so.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        ask(name, timeout=5)
    except HfHubHTTPError:
        return True
    except Exception:  # no network, or told to stay offline; the client raises many kinds
        return False
    return True

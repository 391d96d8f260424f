"""Whether the Hugging Face hub is within reach and has what is named: asked once, for a few seconds, without retries."""

from functools import cache

from rlhf.config.errors import first_line

REACH_S = 5.0
# What helps where nothing can be downloaded.
FETCH = (
    "where there is network, `python -m rlhf fetch` with the same overrides downloads it; then set HF_HOME to that cache "
    "and HF_HUB_OFFLINE=1"
)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@cache
def find_hub_problem(name: str, revision: str | None, kind: str = "model") -> str | None:
    """Why the hub does not give a `model` or a `dataset`; None if it does. The libraries would go on asking for most of a
    minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if is_offline():
        return "HF_HUB_OFFLINE is set"
    if (problem := UNREACHABLE.get("hub")) is not None:
        return problem
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        ask(name, revision=revision, timeout=REACH_S)
    except HFValidationError:
        return "it is no hub id"
    except HfHubHTTPError as error:
        return f"the hub does not give it ({first_line(error)})"
    except Exception as error:  # the HTTP client's own errors are no public names
        UNREACHABLE["hub"] = f"the hub is out of reach ({first_line(error)})"
        return UNREACHABLE["hub"]
    return None


# That the hub cannot be reached at all is found out once.
UNREACHABLE: dict[str, str] = {}


def forget_problems() -> None:
    """Ask anew, where the network or the address of the hub may have changed."""
    find_hub_problem.cache_clear()
    UNREACHABLE.clear()

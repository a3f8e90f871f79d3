"""Check what a push needs before anything is loaded: a name for the repository, and an access token.

Imports nothing heavy: the commands check here first, and the functions that push use the same checks.
"""

from collections.abc import Sequence

from fastgoal.processing.names import is_hub_id

TOKEN_HELP = (
    "Create one with write permission at https://huggingface.co/settings/tokens, then run `hf auth login` or set "
    "HF_TOKEN."
)


def check_repo_name(repo: str) -> None:
    """Raise `ValueError` for a name that no repository of the Hub can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = str(error).partition(" Use `repo_type`")[0].rstrip(".")
        raise ValueError(f"`repo` must be OWNER/NAME, got {repo!r}. {reason}.") from error


def check_space_models(models: Sequence[str]) -> None:
    """Raise `ValueError` for a model that a Space cannot load, because its name is not one of the Hub."""
    for name in models:
        if not is_hub_id(name):
            raise ValueError(
                f"`model` must be OWNER/NAME of a model on the Hub, which the Space loads, got {name}. Push the model "
                "with `fastgoal push` first."
            )


def require_token(token: str | None = None) -> str:
    """Return `token`, or the one that is logged in; raise a `ValueError` if there is none."""
    from huggingface_hub import get_token

    if found := token or get_token():
        return found
    raise ValueError(f"There is no access token for the Hub. {TOKEN_HELP}")

"""What the model reads of a prompt: refused where it cannot be read, told where it is cut."""

from models.class_names import ClassNames, UnknownClass
from models.manifest import Manifest
from service.api.images.schemas import ImageFields
from service.api.state import Gateway
from service.api.vocabulary import split_words, words_header
from service.errors import InvalidRequest


def check_prompts(fields: ImageFields, gateway: Gateway) -> None:
    """Both prompts of a request.

    Raises:
        InvalidRequest: 422 for a blank prompt, one that is too long, or one that the model has no
            use for; see `check_readable`.
    """
    if not fields.prompt.strip():
        what = "describe the picture" if gateway.class_names is None else "name a class"
        raise _invalid("prompt", f"is empty: {what}")
    limit = gateway.settings.max_prompt_chars
    for name in ("prompt", "negative_prompt"):
        num_chars = len(getattr(fields, name))
        if num_chars > limit:
            raise _invalid(name, f"has {num_chars} characters, at most {limit} are read")
    check_readable(gateway.manifest, gateway.class_names, fields.prompt, fields.negative_prompt)


def check_readable(
    manifest: Manifest, class_names: ClassNames | None, prompt: str, negative_prompt: str
) -> None:
    """Whether the model can read these prompts; blank ones it always can.

    Raises:
        InvalidRequest: 422 `unknown_class` for a prompt that names no class of a class model, 422
            for a negative prompt to a model whose guidance starts from a weaker model.
    """
    if negative_prompt.strip() and manifest.guidance == "autoguidance":
        raise _invalid(
            "negative_prompt",
            "has no effect here, as this model's guidance starts from a weaker model: leave it out",
        )
    if class_names is None:
        return
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if not text.strip():
            continue
        try:
            class_names.resolve(text)
        except UnknownClass as error:
            raise _invalid(name, str(error), code="unknown_class") from None


def num_text_tokens(prompt: str, manifest: Manifest) -> int:
    """Words that the model reads; a class is one, however many words its name has."""
    if manifest.class_names is not None:
        return 1
    return min(len(split_words(prompt)), manifest.max_prompt_tokens)


def prompt_headers(fields: ImageFields, gateway: Gateway) -> dict[str, str]:
    """What the client should know about how its prompt was read."""
    if gateway.vocabulary is None:
        return {}
    prompts = (fields.prompt, fields.negative_prompt)
    notes = {
        "x-rpiae-unknown-words": gateway.vocabulary.unknown_words(" ".join(prompts)),
        # The model's last token is the mark of the prompt's end.
        "x-rpiae-cut-words": [
            word
            for prompt in prompts
            for word in split_words(prompt)[gateway.manifest.max_prompt_tokens - 1 :]
        ],
    }
    return {name: words_header(words) for name, words in notes.items() if words}


def _invalid(param: str, problem: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}", status=422, param=param, code=code)

import pytest

from service.api.negotiation import choose_media_type

OFFERED = ("application/json", "image/png", "image/webp")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("IMAGE/PNG", "image/png"),
        ("image/webp;q=0.5, image/png;q=0.4", "image/webp"),
        ("image/*;q=0.9, image/png;q=0.1", "image/webp"),
        ("text/html, */*;q=0.1", "application/json"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("*/*, application/json;q=0", "image/png"),
        ("image/png;q=abc", None),
        (",,;", None),
    ],
)
def test_choose_media_type(accept, chosen):
    assert choose_media_type(accept, OFFERED) == chosen

"""What a sticker can show: the names of shapes and of everyday things, and their plurals.

The atlas of things is made from `THING_CODE_POINTS` by `training/build_sprites.py`; its cells
follow the order of `THINGS`, so a new thing is appended, never inserted.
"""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")

# Noun -> Unicode code point of the picture that shows it. Only nouns of one word whose picture a
# person names without hesitation, and none that is also the name of a shape, colour or background.
THING_CODE_POINTS = {
    "cat": 0x1F431, "dog": 0x1F436, "mouse": 0x1F42D, "rabbit": 0x1F430, "fox": 0x1F98A,
    "bear": 0x1F43B, "panda": 0x1F43C, "koala": 0x1F428, "tiger": 0x1F42F, "lion": 0x1F981,
    "cow": 0x1F42E, "pig": 0x1F437, "frog": 0x1F438, "monkey": 0x1F435, "chicken": 0x1F414,
    "penguin": 0x1F427, "bird": 0x1F426, "duck": 0x1F986, "owl": 0x1F989, "horse": 0x1F434,
    "unicorn": 0x1F984, "bee": 0x1F41D, "butterfly": 0x1F98B, "snail": 0x1F40C,
    "ladybug": 0x1F41E, "turtle": 0x1F422, "snake": 0x1F40D, "octopus": 0x1F419,
    "crab": 0x1F980, "fish": 0x1F41F, "dolphin": 0x1F42C, "whale": 0x1F433,
    "elephant": 0x1F418, "dinosaur": 0x1F995,
    "apple": 0x1F34E, "pear": 0x1F350, "banana": 0x1F34C, "lemon": 0x1F34B,
    "watermelon": 0x1F349, "strawberry": 0x1F353, "pineapple": 0x1F34D, "tomato": 0x1F345,
    "eggplant": 0x1F346, "carrot": 0x1F955, "mushroom": 0x1F344, "avocado": 0x1F951,
    "loaf": 0x1F35E, "hamburger": 0x1F354, "pizza": 0x1F355, "hotdog": 0x1F32D,
    "taco": 0x1F32E, "donut": 0x1F369, "cookie": 0x1F36A, "cake": 0x1F382, "cupcake": 0x1F9C1,
    "lollipop": 0x1F36D, "pretzel": 0x1F968,
    "tree": 0x1F333, "palm": 0x1F334, "cactus": 0x1F335, "sunflower": 0x1F33B, "rose": 0x1F339,
    "tulip": 0x1F337, "leaf": 0x1F341, "sun": 0x1F31E, "moon": 0x1F319, "cloud": 0x2601,
    "rainbow": 0x1F308, "snowman": 0x26C4, "umbrella": 0x2614,
    "car": 0x1F697, "bus": 0x1F68C, "truck": 0x1F69A, "tractor": 0x1F69C, "bicycle": 0x1F6B2,
    "airplane": 0x2708, "helicopter": 0x1F681, "rocket": 0x1F680, "sailboat": 0x26F5,
    "house": 0x1F3E0, "castle": 0x1F3F0, "tent": 0x26FA, "clock": 0x23F0, "phone": 0x1F4F1,
    "camera": 0x1F4F7, "television": 0x1F4FA, "lightbulb": 0x1F4A1, "book": 0x1F4D5,
    "pencil": 0x270F, "key": 0x1F511, "hammer": 0x1F528, "bell": 0x1F514, "gift": 0x1F381,
    "balloon": 0x1F388, "basketball": 0x1F3C0, "guitar": 0x1F3B8, "violin": 0x1F3BB,
    "drum": 0x1F941, "crown": 0x1F451, "hat": 0x1F3A9, "shirt": 0x1F455, "shoe": 0x1F45F,
    "backpack": 0x1F392, "robot": 0x1F916, "ghost": 0x1F47B, "cup": 0x2615, "trophy": 0x1F3C6,
    "chair": 0x1FA91, "anchor": 0x2693,
}  # fmt: skip

THINGS = tuple(THING_CODE_POINTS)

_IRREGULAR_PLURALS = {
    "mouse": "mice", "butterfly": "butterflies", "ladybug": "ladybugs", "fish": "fish",
    "strawberry": "strawberries", "leaf": "leaves", "loaf": "loaves", "cactus": "cacti",
    "trophy": "trophies", "snowman": "snowmen", "fox": "foxes", "tomato": "tomatoes",
    "octopus": "octopuses", "bus": "buses", "cross": "crosses",
}  # fmt: skip


def plural(kind: str) -> str:
    """Plural of a shape or thing: `circles`, `mice`."""
    return _IRREGULAR_PLURALS.get(kind, kind + "s")

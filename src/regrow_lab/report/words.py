"""What stands in a configuration, in words that a person says."""

from __future__ import annotations

DISTRIBUTIONS = {"uniform": "uniform", "erk": "ERK", "er": "ER", "flop-aware": "FLOP-aware"}
FIELDS = {
    "drop_fraction": "alpha {}",
    "every": "dT {}",
    "start": "from {}",
    "storage": "{} storage",
    "precision": "{}",
    "optimizer": "{}",
    "augmentation": "{}",
    "schedule": "{} schedule",
    "decay": "decay {}",
}
"""Field -> how it is said with its value; the others by their name."""
VALUES = {
    "precision=float32": "fp32",
    "storage=dense": "masked",
    "storage=compact": "compact",
    "start=rigl-sm": "from RigL-SM's masks",
    "start=rigl-sm-densities": "from RigL-SM's densities",
    "start=trained": "not rewound: trained on",
    "start=reinitialized": "re-initialised",
    "start=shuffled": "masks shuffled",
    "augmentation=none": "no augmentation",
    "rewind=0.0": "rewound to step 0",
}
"""What is said of a value as a whole."""


def distribution_in_words(name: str | None) -> str:
    """A distribution as figures name it."""
    return DISTRIBUTIONS.get(str(name), str(name))


def fields_of(variant: str) -> dict[str, str]:
    """Field -> value, as text, of what sets a row apart.

    >>> fields_of("drop_fraction=0.3, every=20")
    {'drop_fraction': '0.3', 'every': '20'}
    """
    return dict(part.split("=", 1) for part in variant.split(", ") if "=" in part)


def variant_in_words(variant: str) -> str:
    """What sets a row apart, as people say it.

    >>> variant_in_words("drop_fraction=0.3, every=20, learning_rate=0.005")
    'alpha 0.3, dT 20, learning rate 0.005'
    >>> variant_in_words("rewind=0.05"), variant_in_words("rewind=0.0, start=shuffled"), variant_in_words("timed=True")
    ('rewound to 5 %', 'masks shuffled', 'timed')
    """
    parts = [part for part in variant.split(", ") if part]
    if any(part.startswith("start=") for part in parts):
        parts = [part for part in parts if part != "rewind=0.0"]
    return ", ".join(map(_in_words, parts))


def _in_words(part: str) -> str:
    field, _, value = part.partition("=")
    name = field.replace("_", " ")
    if part in VALUES:
        return VALUES[part]
    if field == "rewind":
        return f"rewound to {100 * float(value):g} %"
    if value in ("True", "False"):
        return name if value == "True" else f"not {name}"
    return FIELDS.get(field, f"{name} {{}}").format(value)

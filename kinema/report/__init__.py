"""Evidence as one self-contained page: text, tables, charts and moving pictures."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "animation": ["Animation", "animate"],
        "charts": [],
        "learning": ["learning_page"],
        "page": ["Page"],
        "picture": ["Picture"],
        "style": [],
    },
)

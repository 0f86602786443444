"""Files that appear whole or not at all."""

from kinema._files import write_file as write_whole

__all__ = ["write_whole"]

from kinema.models.registry import make, model, names, spec
from kinema.models import mlp, motion_tokens, temporal_unet, image_unet, dit
from kinema.models.embedding import null_condition

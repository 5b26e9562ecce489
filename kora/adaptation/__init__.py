"""`kora adapt`: from a folder of pictures to the model that is best by validation."""

#: The backbone unless another is named.
BACKBONE = "vit_small_patch14_dinov2.lvd142m"

"""LightningDataModules that yield uint8 images at their native size. Never imports kora."""

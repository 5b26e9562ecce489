"""`kora adapt`: from a folder of pictures to the model that is best by validation."""

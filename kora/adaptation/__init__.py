"""`kora adapt`: from a folder of pictures to the model that validation says is best."""

"""MAR and Harmon: tokens are generated in any order, several at a time."""

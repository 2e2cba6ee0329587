"""The plan file and the engines that run its graphs."""

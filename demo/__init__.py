"""The demo: small models trained on Fashion-MNIST, and measurements of DiSA on them."""

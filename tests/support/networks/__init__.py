"""The networks that tests share: small ones, one an operation, one a kind of coupling, and models as users write them."""

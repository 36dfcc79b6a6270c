"""The networks that tests share: small ones, one an operation or a kind of coupling, and models as users write them."""

"""The networks that tests share: small ones, one per operation or kind of coupling, and models as users write them."""

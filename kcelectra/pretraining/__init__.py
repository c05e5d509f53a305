"""From clean documents to a pretrained generator and discriminator."""

"""From raw comments to clean documents."""

"""What a run leaves for people: reports, cards, repositories."""

"""What a program calls: events and spans, and which open recordings take them."""

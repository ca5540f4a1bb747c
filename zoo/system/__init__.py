"""The machine below: reading, writing, signals, memory, the hub, and how quantities are written."""

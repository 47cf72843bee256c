"""What proposes a step: learned networks, hand-made rules, controls and references."""

"""LoRA of ``peft`` on a pre-trained MiniLM, by a learned optimizer and by tuned ones."""

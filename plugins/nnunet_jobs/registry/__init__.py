"""What happened to a dataset's models, who decided it, and which of them is the champion."""

"""Files that several processes share: durable writing, the workspace, who may read it, predictions, withdrawals."""

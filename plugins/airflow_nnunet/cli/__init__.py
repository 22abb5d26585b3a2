"""Commands of ``airflow nnunet``: their definition, and one module for each of them."""

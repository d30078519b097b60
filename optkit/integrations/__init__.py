"""optkit in a training run: callbacks for Lightning and the Hugging Face Trainer, and what they log to.

    from optkit.integrations.lightning import OptkitCallback
    from optkit.integrations.transformers import OptkitCallback
    from optkit.integrations.tracking import MLflow, TensorBoard, WandB

Importing this loads nothing; each module needs what it is named after once its names are used.
"""

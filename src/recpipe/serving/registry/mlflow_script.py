"""Script of the logged MLflow model: MLflow runs it at loading, instead of reading a pickle."""

from mlflow.models import set_model

from recpipe.serving.registry.mlflow_model import BundleModel

set_model(BundleModel())

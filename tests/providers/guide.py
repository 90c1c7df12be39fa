"""The code of the guide to fine-tuning that DSPy's users know, word for word and in its order."""

BASIC_USAGE = """\
import dspy
from dspy.clients.utils_finetune import TrainDataFormat

# Enable experimental features (required for fine-tuning)
dspy.settings.experimental = True

# Create an LM instance with the model you want to fine-tune
lm = dspy.LM(model="bedrock/amazon.nova-lite-v1")

# Prepare your training data
train_data = [
    {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."}
        ]
    },
    # Add more examples...
]

# Start fine-tuning
job = lm.finetune(
    train_data=train_data,
    train_data_format=TrainDataFormat.CHAT,
    train_kwargs={
        # Provider-specific parameters
        "s3_path": "s3://your-bucket/fine-tuning-data/",
        "aws_profile": "default",  # Optional
        "hyperparameters": {
            "epochCount": 3,
            "batchSize": 4,
            "learningRate": 1e-5
        }
    }
)

# Wait for the job to complete
finetuned_model = job.result()

# Use the fine-tuned model
finetuned_lm = dspy.LM(model=finetuned_model)
response = finetuned_lm("What is the capital of Germany?")
print(response)
"""

CHAT_DATA = """\
chat_data = [
    {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello, how are you?"},
            {"role": "assistant", "content": "I'm doing great, thank you!"}
        ]
    }
]
"""

COMPLETION_DATA = """\
completion_data = [
    {
        "prompt": "What is the capital of France?",
        "completion": "Paris is the capital of France."
    }
]
"""

OPENAI_KWARGS = """\
train_kwargs = {
    "n_epochs": 3,
    "batch_size": 4,
    "learning_rate_multiplier": 1.0
}
"""

BEDROCK_KWARGS = """\
train_kwargs = {
    "s3_path": "s3://your-bucket/fine-tuning-data/",  # Required
    "aws_profile": "default",  # Optional, uses default credentials if not provided
    "hyperparameters": {
        "epochCount": 3,
        "batchSize": 4,
        "learningRate": 1e-5
    },
    "job_name": "my-finetune-job",  # Optional
    "start_endpoint": True  # Optional, whether to start an endpoint after training
}
"""

SYSTEM_PROMPT_DATA = """\
chat_data = [
    {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant specialized in geography."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."}
        ]
    }
]
"""

DATABRICKS_KWARGS = """\
train_kwargs = {
    "train_data_path": "/Volumes/catalog/schema/volume/path",  # Required
    "register_to": "catalog.schema.model_name",  # Required
    "task_type": "CHAT_COMPLETION",  # or "INSTRUCTION_FINETUNE"
    "databricks_host": "https://your-workspace.cloud.databricks.com",  # Optional
    "databricks_token": "your-token",  # Optional
    "skip_deploy": False  # Optional
}
"""

STATUS = """\
status = job.status()
print(f"Job status: {status}")
"""

CANCEL = """\
job.cancel()
"""

ENDPOINTS = """\
# Start an endpoint
job.start_endpoint()

# Stop an endpoint
job.stop_endpoint()
"""

WITH_BOOTSTRAP_FINETUNE = """\
import dspy
from dspy.teleprompt import BootstrapFinetune

# Define your program
class SimpleQA(dspy.Module):
    def __init__(self):
        super().__init__()
        self.generate_answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question):
        return self.generate_answer(question=question)

# Create instances
base_lm = dspy.LM("bedrock/amazon.nova-lite-v1")
program = SimpleQA()

# Attach the LM to the program
for predictor in program.predictors():
    predictor.lm = base_lm

# Create the optimizer
optimizer = BootstrapFinetune(
    train_kwargs={
        "s3_path": "s3://your-bucket/fine-tuning-data/",
        "aws_profile": "default",
        "hyperparameters": {
            "epochCount": 3,
            "batchSize": 4,
            "learningRate": 1e-5
        }
    }
)

# Compile the program
optimized_program = optimizer.compile(
    student=program,
    trainset=train_examples
)

# Use the optimized program
result = optimized_program(question="What is the capital of France?")
print(result.answer)
"""

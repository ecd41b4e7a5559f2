"""What files and models are, for the editor's panels and for people.

`lines.py`: the texts. `describe.py`: a loaded model in lines, `lora_lines.py`: a LoRA on one. `file_info.py`: a file, before it
is loaded. `routes.py`: what the browser asks about one, `origins.py`: from which pages. `file_checks.py`: whether a loader can run
with it. `file_questions.py` answers both in threads of its own. `model_files.py`: names to paths. `saving.py`: residuals and
networks to the output folder.
"""

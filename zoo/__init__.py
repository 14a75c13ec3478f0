"""The zoo: one short file per family of models, beside a card that says where its weights come from."""
